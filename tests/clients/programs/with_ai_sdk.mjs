// The AI SDK with its provider for servers that speak OpenAI's API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, model, ...flags] = process.argv.slice(2);
const steered = `${model}:happy=1`;
const provider = createOpenAICompatible({ name: "localsteer", baseURL: `${url}/v1`, includeUsage: true });
const settings = { temperature: 0, seed: 1, maxOutputTokens: 32, prompt: "How was your day?" };

async function agent(name, stream) {
  const calls = [];
  const given = {
    model: provider(name),
    temperature: 0,
    seed: 1,
    maxOutputTokens: 120,
    system: "Use the tool to look up the weather, then answer in one short sentence.",
    prompt: "How warm is it in Lisbon?",
    stopWhen: stepCountIs(3),
    tools: {
      get_weather: tool({
        description: "Current weather of a city.",
        inputSchema: z.object({ city: z.string() }),
        execute: async ({ city }) => {
          calls.push({ city });
          return `In ${city} it is 31 degrees and sunny.`;
        },
      }),
    },
  };
  const answer = stream ? await streamText(given).text : (await generateText(given)).text;
  return { calls, answer };
}

if (flags.includes("--tools")) {
  const agents = [];
  for (const name of [model, steered]) for (const stream of [false, true]) agents.push(await agent(name, stream));
  console.log(JSON.stringify({ agents }));
} else {
  const plain = (await generateText({ model: provider(model), ...settings })).text;
  let streamed = "";
  for await (const part of streamText({ model: provider(model), ...settings }).textStream) streamed += part;
  const other = (await generateText({ model: provider(steered), ...settings })).text;
  console.log(JSON.stringify({ plain, streamed, steered: other }));
}
