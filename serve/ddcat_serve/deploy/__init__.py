"""Deployment on Triton and Ray."""
