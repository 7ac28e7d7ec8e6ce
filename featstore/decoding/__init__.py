"""From video files to frames in shared memory, in processes that can be killed."""
