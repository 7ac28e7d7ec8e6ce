"""How answers are generated, in any family: settings, prefixes that are kept, configs that stay as they were."""
