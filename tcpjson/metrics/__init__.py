"""What an operator sees of a server over HTTP: metrics for Prometheus, lists as JSON, a page."""
