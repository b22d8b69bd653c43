"""Darkroom's platform: jobs, their truth in SQL, their pictures in S3, and the web face. Knows no torch."""

__version__ = "0.1.0"
