"""Small things that many modules stand on: numbers, times, words, JSON, files. No module here knows what a lane is."""
