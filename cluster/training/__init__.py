"""The loop and what one worker does in it. Ray stays out."""
