# Rotate so that the song at position `start` plays first; positions wrap around.
def rotate(songs, start):
    if not songs:
        return []
    start %= len(songs)
    return songs[start:] + songs[:start]


# Perfect shuffle: cut in two halves (the first one larger if need be), then interleave.
def riffle(songs):
    half = (len(songs) + 1) // 2
    first, second = songs[:half], songs[half:]
    mixed = []
    for index, song in enumerate(first):
        mixed.append(song)
        if index < len(second):
            mixed.append(second[index])
    return mixed


# How many riffles bring the playlist back to its original order (at least one).
def riffle_period(length):
    original = list(range(length))
    current = riffle(original)
    steps = 1
    while current != original:
        current = riffle(current)
        steps += 1
    return steps


# Keep every song's first appearance, and drop a song whose artist just played.
# Songs are (artist, title) pairs.
def tidy(songs):
    seen = set()
    result = []
    for song in songs:
        if song in seen:
            continue
        if result and result[-1][0] == song[0]:
            continue
        seen.add(song)
        result.append(song)
    return result
