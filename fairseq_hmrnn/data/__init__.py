from .characters import CharacterCodec, CharacterDictionary, is_character_dictionary

__all__ = ["CharacterCodec", "CharacterDictionary", "is_character_dictionary"]
