"""What each step computed, and a timeline of it."""
