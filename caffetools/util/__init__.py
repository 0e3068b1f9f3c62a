"""Atomic files and folders, locks, threads: what no other room should write twice."""
