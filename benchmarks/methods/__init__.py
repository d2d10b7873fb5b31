"""Every method beside plain Taylor: the face study's machinery with other networks, people and questions."""
