"""Measures of two views: what each declares, how it is formed, its slopes, its intervals."""
