"""Colour whole films, in jobs that can be stopped at any moment and that go on where they were."""
