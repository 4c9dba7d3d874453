// Runs another implementation (node-llama-cpp) for scripts/interop.
//
//   node reference.mjs PACKAGE_DIR < jobs.json > answers.json
//
// jobs: [{"model": PATH, "prompt_ids": [..], "n_predict": N}]   greedy continuation, or
//       [{"model": PATH, "score_ids": [..]}]                    teacher-forced log-probabilities
// answers, in the same order: {"ids": [..]}, {"logprobs": [..]} (natural logarithm, one per id but
// the first), or {"error": TEXT}. Ids are given as they are: nothing is added or tokenized here.

import path from "node:path";
import {pathToFileURL} from "node:url";
import {readFileSync, writeSync} from "node:fs";

const packageDir = path.resolve(process.argv[2], "node_modules/node-llama-cpp");
const {getLlama, LlamaLogLevel} =
    await import(pathToFileURL(path.join(packageDir, "dist/index.js")).href);

const llama = await getLlama({
    gpu: false,
    build: "never",
    usePrebuiltBinaries: true,
    progressLogs: false,
    logLevel: LlamaLogLevel.error
});

const logitsOnly = {generateNext: {logits: true}};

function argmax(logits) {
    let best = null;
    for (const [id, logit] of logits) {
        if (best === null || logit > logits.get(best) || (logit === logits.get(best) && id < best))
            best = id;
    }
    return best;
}

function logprob(logits, id) {
    let max = -Infinity;
    for (const logit of logits.values()) max = Math.max(max, logit);
    let sum = 0;
    for (const logit of logits.values()) sum += Math.exp(logit - max);
    return logits.get(id) - max - Math.log(sum);
}

async function greedy(sequence, promptIds, nPredict) {
    const ids = [];
    const last = promptIds.length - 1;
    let input = promptIds.map((id, i) => i === last ? [id, logitsOnly] : id);
    while (ids.length < nPredict) {
        const output = await sequence.controlledEvaluate(input);
        const id = argmax(output[input.length - 1].next.logits);
        ids.push(id);
        input = [[id, logitsOnly]];
    }
    return {ids};
}

async function score(sequence, ids) {
    const input = ids.slice(0, -1).map((id) => [id, logitsOnly]);
    const output = await sequence.controlledEvaluate(input);
    return {logprobs: input.map((_, i) => logprob(output[i].next.logits, ids[i + 1]))};
}

async function run(job) {
    const nTokens = job.score_ids?.length ?? job.prompt_ids.length + job.n_predict;
    const model = await llama.loadModel({modelPath: job.model, gpuLayers: 0});
    try {
        const context = await model.createContext({
            contextSize: Math.max(64, nTokens + 8),
            batchSize: Math.max(64, nTokens + 8),
            // The caches default to 16-bit floats; 32-bit ones come closer to the exact answer.
            experimentalKvCacheKeyType: "F32",
            experimentalKvCacheValueType: "F32",
            flashAttention: false,
            threads: 1  // Its threads spin, which on a busy machine takes longer than one.
        });
        const sequence = context.getSequence();
        const answer = job.score_ids ? await score(sequence, job.score_ids)
            : await greedy(sequence, job.prompt_ids, job.n_predict);
        await context.dispose();
        return answer;
    } finally {
        await model.dispose();
    }
}

const answers = [];
for (const job of JSON.parse(readFileSync(0, "utf8"))) {
    try {
        answers.push(await run(job));
    } catch (error) {
        answers.push({error: `${job.model}: ${error?.message ?? error}`});
    }
}
writeSync(1, JSON.stringify(answers) + "\n");
process.exit(0);
