"""The pages for readers, followed word by word on live clusters."""
