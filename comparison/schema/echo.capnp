@0xb0f1a3c5d7e90601;

interface Echo {
  ping @0 (text :Text) -> (text :Text);
}
