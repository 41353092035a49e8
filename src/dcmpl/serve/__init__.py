"""HTTP service around a scorer: its queue, its requests, its page."""
