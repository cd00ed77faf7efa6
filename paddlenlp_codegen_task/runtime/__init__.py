"""Runs one forward step on a device."""
