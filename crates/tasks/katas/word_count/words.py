STOP_WORDS = {"the", "a", "an", "and", "or", "of", "to", "in", "is", "it"}


# Lower-case words; an apostrophe or hyphen inside a word belongs to it.
def split_words(text):
    words = []
    for piece in text.lower().split():
        word = piece.strip(".,;:!?\"'()-")
        if word:
            words.append(word)
    return words


# The `limit` most frequent words that are no stop words, as (word, count);
# the alphabet decides between equal counts.
def most_common(text, limit):
    counts = {}
    for word in split_words(text):
        if word not in STOP_WORDS:
            counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ranked[:limit]


# Sentences end with one or more of . ! ? and text without an end mark counts as one.
def sentence_count(text):
    count = 0
    open_sentence = False
    for char in text:
        if char in ".!?":
            count += open_sentence
            open_sentence = False
        elif not char.isspace():
            open_sentence = True
    return count + open_sentence


# Whole minutes at the given speed, rounded up; an empty text takes none.
def reading_minutes(text, words_per_minute=200):
    return -(-len(split_words(text)) // words_per_minute)
