"""The live node: one loop, small services with ``tick()``. Knows neither Celery nor SQL."""
