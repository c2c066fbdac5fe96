// OpenAI's own client for JavaScript.
import OpenAI from "openai";

const [url, model, ...flags] = process.argv.slice(2);
const steered = `${model}:happy=1`;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const settings = { temperature: 0, seed: 1, max_tokens: 32 };
const messages = [{ role: "user", content: "How was your day?" }];

async function chat(name) {
  const answer = await client.chat.completions.create({ model: name, messages, ...settings });
  return answer.choices[0].message.content;
}

async function streamed() {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, ...settings })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

// Two steps, which the client takes by itself: the model calls, reads the result, and answers.
async function agent(name, stream) {
  const calls = [];
  const run = client.chat.completions.runTools({
    ...settings,
    model: name,
    stream,
    max_tokens: 120,
    messages: [
      { role: "system", content: "Use the tool to look up the weather, then answer in one short sentence." },
      { role: "user", content: "How warm is it in Lisbon?" },
    ],
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          description: "Current weather of a city.",
          parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
          parse: JSON.parse,
          function: (given) => {
            calls.push(given);
            return `In ${given.city} it is 31 degrees and sunny.`;
          },
        },
      },
    ],
  });
  return { calls, answer: await run.finalContent() };
}

if (flags.includes("--tools")) {
  const agents = [];
  for (const name of [model, steered]) for (const stream of [false, true]) agents.push(await agent(name, stream));
  console.log(JSON.stringify({ agents }));
} else {
  console.log(JSON.stringify({ plain: await chat(model), streamed: await streamed(), steered: await chat(steered) }));
}
