"""The demo: a real cluster of Celery workers, one killed and one stopped half-way, and a verdict from records.

``scenario`` is the story; ``tasks`` is the application that a user would write; ``checker`` is the judge.
"""
