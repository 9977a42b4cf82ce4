"""Where scoring runs. Every executor gives the same columns for the same documents."""
