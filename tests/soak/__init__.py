"""The soak test: what is left of a server after hours of churn. `python -m tests.soak`"""
