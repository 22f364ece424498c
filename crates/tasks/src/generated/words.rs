//! The words that every name of a generated repository is drawn from.

/// Everyday nouns, none of them a Python keyword, builtin or standard module. Each is one token of
/// the embedded policy's tokenizer.
pub const WORDS: [&str; 356] = [
    "amber", "anchor", "apple", "apron", "arch", "arrow", "ash", "aspen", "atlas", "attic",
    "autumn", "badge", "bagel", "bamboo", "banjo", "barn", "basil", "basket", "beacon", "bead",
    "beam", "bear", "beaver", "bell", "bench", "berry", "birch", "bison", "blanket", "blossom",
    "boat", "bonnet", "book", "boot", "bottle", "boulder", "bow", "bramble", "branch", "brass",
    "bread", "brick", "bridge", "brook", "broom", "brush", "bucket", "bud", "buffalo", "bugle",
    "bunny", "burrow", "bush", "butter", "button", "cabin", "cable", "cactus", "camel", "camera",
    "canal", "candle", "canoe", "canvas", "canyon", "cape", "caravan", "cargo", "carpet", "carrot",
    "castle", "cave", "cedar", "cello", "cereal", "chalk", "cheese", "cherry", "chest", "chimney",
    "cider", "cinder", "citrus", "clam", "clay", "cliff", "clock", "cloud", "clover", "coal",
    "coast", "cobalt", "cocoa", "coin", "comet", "compass", "copper", "coral", "cork", "cotton",
    "cove", "coyote", "crab", "cradle", "crane", "crater", "creek", "cricket", "crown", "crystal",
    "curtain", "cypress", "daisy", "dale", "dawn", "deer", "delta", "desert", "dew", "diamond",
    "dock", "dove", "dragon", "drum", "dune", "dusk", "eagle", "earth", "easel", "echo", "elbow",
    "elk", "elm", "ember", "emerald", "falcon", "feather", "fence", "fern", "ferry", "fiddle",
    "field", "fig", "finch", "fir", "flag", "flame", "flax", "flint", "flute", "foam", "fog",
    "forest", "fossil", "fountain", "fox", "frost", "gable", "galaxy", "garden", "garlic", "gate",
    "gecko", "geyser", "ginger", "glacier", "glade", "goose", "gorge", "grain", "granite", "grape",
    "grass", "gravel", "grove", "guitar", "gull", "hammer", "hammock", "harbor", "harp", "hawk",
    "hazel", "hedge", "heron", "hickory", "hill", "holly", "honey", "hornet", "ibis", "igloo",
    "inlet", "iris", "iron", "island", "ivory", "ivy", "jacket", "jade", "jasmine", "jelly",
    "jetty", "jewel", "juniper", "kayak", "kelp", "kettle", "kite", "kiwi", "ladder", "lagoon",
    "lake", "lamp", "lantern", "larch", "lark", "lava", "lavender", "leaf", "lemon", "lichen",
    "lilac", "lily", "lime", "linen", "lizard", "llama", "lobster", "locket", "lotus", "lynx",
    "magnet", "mango", "mantle", "maple", "marble", "marsh", "meadow", "melon", "mercury", "mill",
    "mint", "mirror", "mist", "mitten", "moat", "moose", "moss", "moth", "mountain", "muffin",
    "mule", "mustard", "nectar", "needle", "nest", "nickel", "nutmeg", "oak", "oasis", "oat",
    "ocean", "olive", "onion", "opal", "orbit", "orchard", "orchid", "otter", "owl", "oyster",
    "paddle", "palm", "panda", "panther", "parrot", "pasture", "peach", "peacock", "pear",
    "pebble", "pelican", "pepper", "piano", "pigeon", "pillow", "pine", "planet", "plum", "pond",
    "poplar", "poppy", "prairie", "pumpkin", "puzzle", "quail", "quarry", "quartz", "quill",
    "rabbit", "radish", "raft", "rain", "raven", "reef", "ribbon", "ridge", "river", "robin",
    "rocket", "rose", "ruby", "saddle", "saffron", "sail", "salmon", "sand", "sapphire", "sequoia",
    "shell", "shore", "silk", "silver", "sky", "slate", "snow", "sparrow", "spruce", "squash",
    "star", "stone", "storm", "stream", "summit", "sun", "swan", "tide", "tiger", "timber",
    "topaz", "torch", "trail", "tulip", "tundra", "valley", "velvet", "violet", "walnut", "wheat",
    "willow", "wolf", "wren", "yarrow", "zebra", "zinnia",
];

#[cfg(test)]
mod tests {
    use super::WORDS;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_distinct_and_plain() {
        assert_eq!(WORDS.iter().collect::<BTreeSet<_>>().len(), WORDS.len());
        assert!(WORDS.iter().all(|w| w.len() >= 2 && w.bytes().all(|b| b.is_ascii_lowercase())));
    }
}
