"""zweave's experts inside other people's models. Each integration is an extra; the core imports none of them."""
