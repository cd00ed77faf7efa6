"""Completing many prompts: from a file of rows, or a folder of files, to a file of completions."""
