"""What runs in the sandbox: the standard library's Python and these modules, nothing else of ours.

In the sandbox they are the package `inside`, so they import one another relatively.
"""
