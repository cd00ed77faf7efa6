"""What runs in the sandbox: the standard library's Python and these modules, nothing else of ours.

In the sandbox they are the package `inside`, so they import one another relatively. Each program's
process starts anew, so they do without the modules that take long to import: typing, contextlib,
collections, functools, ast, signal and all that need re.
"""
