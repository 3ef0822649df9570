"""Numbers of a run for Prometheus, through Ray, and a Grafana dashboard of them."""
