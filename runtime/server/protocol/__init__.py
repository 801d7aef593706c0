"""The bodies of requests: types alone; what values may be is checked by `zweave.Request`."""
