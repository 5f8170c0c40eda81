"""The demo model: a drawn world of portraits with known attributes, and everything trained on it."""
