"""zweave beside other servers."""
