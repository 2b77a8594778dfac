"""Videos by replicas of a Ray Serve application, in place of processes of this machine."""
