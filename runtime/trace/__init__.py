"""What each step computed, for an observer, and a timeline of it."""
