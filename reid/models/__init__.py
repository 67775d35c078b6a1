"""The network of Bag of Tricks and its weights."""
