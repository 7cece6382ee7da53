"""Files of images coded by a model: their format, where they can be decoded, and how small they are beside others."""
