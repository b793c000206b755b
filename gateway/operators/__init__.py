"""What is for those who run gateways: which nodes there are, what is wrong with one, and the commands that ask."""
