// Twelve requests of different lengths, so that there is a batch to look at.

import { stream } from "./api.js";

// A browser opens six connections to a server: one is the live view's, one the chat's.
const CONNECTIONS = 4;
const SENTENCE = "The orca swims far out where the water is cold, and the small boat follows it along the coast. ";
// [sentences of either prompt, tokens of their answers]; two prompts a connection.
const ASKS = [
  [1, 4, 120],
  [8, 2, 48],
  [2, 14, 72],
  [1, 3, 24],
  [20, 1, 36],
  [3, 6, 96],
];

/** Run them all; `onProgress` is told how many have ended, of how many. */
export async function runCrowd(maxLength, onProgress) {
  const left = [...ASKS];
  let ended = 0;
  const total = ASKS.length * 2;
  onProgress(ended, total);
  const work = async () => {
    while (left.length) {
      await ask(left.shift(), maxLength);
      ended += 2;
      onProgress(ended, total);
    }
  };
  await Promise.all(Array.from({ length: CONNECTIONS }, work));
}

async function ask([first, second, tokens], maxLength) {
  // Some 25 tokens a sentence, and there are models with little room.
  const most = Math.max(1, Math.floor(maxLength / 80));
  const asked = {
    prompt: [first, second].map((sentences) => SENTENCE.repeat(Math.min(sentences, most))),
    max_tokens: Math.max(1, Math.min(tokens, Math.floor(maxLength / 4))),
    ignore_eos: true,
    stream: true,
  };
  for await (const { data } of stream("/v1/completions", asked)) {
    if (data.error) throw new Error(data.error.message);
  }
}
