"""What videos are compared by: likeness of frames and of features, networks that see, and functions of the user's."""
