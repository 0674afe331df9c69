"""One run or proof after the other, each in a folder of its own, and one table of what became of them."""
