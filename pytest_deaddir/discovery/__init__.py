"""Where the norms are and what they are: from tensor names where there is nothing else, from behaviour where a module is."""
