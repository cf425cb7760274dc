"""The tables and figures of the paper, one file each, and one study of ours."""
