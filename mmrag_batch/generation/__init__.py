"""From a question and its evidence to an answer: prompts, engines, scoring of choices."""
