"""Departures from New York in January 2013, worked through by a tree of actors."""
