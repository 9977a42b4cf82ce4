"""The commands of `dqs`, one file each. They read arguments, call what does the work, and print.

What is heavy is imported inside a command, so that `dqs --help` answers at once.
"""
