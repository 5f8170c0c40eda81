"""Editing by words on the demo model: our sliders beside the published methods, tuned by the same rule."""
