// Times another engine through the public interface of the package node-llama-cpp, for scripts/bench-peer.
//
//   node peer.mjs PACKAGE MODEL THREADS
//
// PACKAGE is the folder that the package is installed in. Says as a line of JSON what was loaded, then answers
// each line of JSON on standard input with one:
//
//   {"prompt": 512, "generate": 0, "parallel": 1, "depth": 0, "repetitions": 2}
//   {"wall": [...], "engine": [...], "cores": [...], "batches": {"512": 2}}
//
// A test of the same shape as the one before goes on with its context. Seconds per repetition: as seen from here, and what the engine counts for its own evaluation, which leaves out
// sampling and the way through JavaScript. "cores" is processor time by time passed, which shows whether the
// threads really worked; "batches" counts the steps by their number of tokens.

import {readFileSync} from "node:fs";
import path from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const BATCH = 512; // What both engines take per step by default.
const FIRST_PLAIN_TOKEN = 300; // Special and byte tokens of `recua synth` are below.

const [folder, model_file, threads_text] = process.argv.slice(2);
const threads = Number(threads_text);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(folder, "dist", "index.js")));

let engine_ms = 0;
let flash_attention = "unknown";
function heed(level, message) {
  // "prompt eval time = 12.3 ms / 512 tokens (...)": steps of several tokens, "eval time": of one.
  const found = /(?:^|\s)eval time\s*=\s*([\d.]+) ms/.exec(message);
  if (found !== null) engine_ms += Number(found[1]);
  flash_attention = /Flash Attention (enabled|disabled)/.exec(message)?.[1] ?? flash_attention;
  if (level === LlamaLogLevel.error || level === LlamaLogLevel.fatal) process.stderr.write(message + "\n");
}

/// Which build of the processor's kernels is in this process: ".../libggml-cpu-haswell.so".
function kernels_loaded() {
  const names = readFileSync("/proc/self/maps", "utf8").match(/libggml-cpu-?[^/\s]*\.so/g) ?? [];
  return [...new Set(names)].map((name) => name.replace(/^libggml-cpu-?|\.so$/g, "")).join(",");
}

function random_tokens(n, n_vocabulary, state) {
  const tokens = [];
  for (let i = 0; i < n; i++) {
    state.seed = (Math.imul(state.seed, 1664525) + 1013904223) >>> 0;
    tokens.push(FIRST_PLAIN_TOKEN + (state.seed % (n_vocabulary - FIRST_PLAIN_TOKEN)));
  }
  return tokens;
}

/// All tokens in one go, and the most likely one after the last is asked for, as `recua bench` does.
function with_greedy_end(tokens) {
  const last = [tokens.at(-1), {generateNext: {token: true, options: {temperature: 0}}}];
  return [...tokens.slice(0, -1), last];
}

/// A context with sequences of the test's depth. It stays for the next test of the same shape.
async function prepare(model, test) {
  const batches = {};
  const per_sequence = test.depth + test.prompt + test.generate + 1;
  const context = await model.createContext({
    sequences: test.parallel,
    contextSize: per_sequence,
    batchSize: BATCH,
    threads: {ideal: threads, min: threads},
    performanceTracking: true,
    ignoreMemorySafetyChecks: true,
    batching: {
      itemPrioritizationStrategy: ({items, size}) => {
        const amounts = [];
        let left = size;
        for (const item of items) {
          const amount = Math.min(left, item.tokens.length);
          if (amount > 0) amounts.push({item, processAmount: amount});
          left -= amount;
        }
        batches[size - left] = (batches[size - left] ?? 0) + 1;
        return amounts;
      }
    }
  });
  const state = {seed: 1};
  const n_vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
  const draw = (n) => random_tokens(n, n_vocabulary, state);
  const sequences = Array.from({length: test.parallel}, () => context.getSequence());
  const prefill = async (n) => {
    for (const sequence of sequences) await sequence.controlledEvaluate(with_greedy_end(draw(n)));
  };
  const generate = async (n) => {
    for (let i = 0; i < n; i++)
      await Promise.all(sequences.map((sequence) => sequence.controlledEvaluate(with_greedy_end(draw(1)))));
  };
  const truncate = async (n) => {
    for (const sequence of sequences)
      await sequence.eraseContextTokenRanges([{start: n, end: sequence.nextTokenIndex}]);
  };
  const run = async () => {
    if (test.prompt > 0) await prefill(test.prompt);
    await generate(test.generate);
  };

  if (test.depth > 0) for (const s of sequences) await s.evaluateWithoutGeneratingNewTokens(draw(test.depth));
  await (test.prompt > 0 ? run() : generate(2)); // Cold caches and buffers.
  await truncate(test.depth);
  return {context, batches, run, truncate};
}

async function measure({context, batches, run, truncate}, test) {
  const answer = {wall: [], engine: [], cores: [], threads: context.currentThreads};
  for (let i = 0; i < test.repetitions; i++) {
    for (const size of Object.keys(batches)) delete batches[size];
    await context.printTimings();
    engine_ms = 0;
    const cpu = process.cpuUsage();
    const begin = process.hrtime.bigint();
    await run();
    const seconds = Number(process.hrtime.bigint() - begin) / 1e9;
    const used = process.cpuUsage(cpu);
    await context.printTimings();
    answer.wall.push(seconds);
    answer.engine.push(engine_ms / 1e3);
    answer.cores.push((used.user + used.system) / 1e6 / seconds);
    await truncate(test.depth);
  }
  return {...answer, batches};
}

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 0,
  logLevel: LlamaLogLevel.info, logger: heed});
const begin = process.hrtime.bigint();
const model = await llama.loadModel({modelPath: model_file, gpuLayers: 0, ignoreMemorySafetyChecks: true});
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const context = await model.createContext({contextSize: 256, threads: {ideal: threads, min: threads}});
say({
  load_seconds: Number(process.hrtime.bigint() - begin) / 1e9,
  kernels: kernels_loaded(),
  system: llama.systemInfo,
  flash_attention,
  batch: BATCH,
  threads: context.currentThreads,
  gpu: llama.gpu
});
await context.dispose();
let prepared = {};
for await (const line of createInterface({input: process.stdin})) {
  const {repetitions, ...shape} = JSON.parse(line);
  if (prepared.shape !== JSON.stringify(shape)) {
    await prepared.state?.context.dispose();
    prepared = {shape: JSON.stringify(shape), state: await prepare(model, shape)};
  }
  say(await measure(prepared.state, {...shape, repetitions}));
}
await prepared.state?.context.dispose();
