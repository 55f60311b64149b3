"""The scorer of drawn scenes: reads pixels, captions and answers back, compares with the truth."""
