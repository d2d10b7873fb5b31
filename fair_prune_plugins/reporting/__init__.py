"""What all reports share: how numbers are worded, how pictures look, and how a page holds everything it needs."""
