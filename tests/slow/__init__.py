"""Tests that start Ray, train for real or take over ten seconds; all of them are marked `slow`."""
