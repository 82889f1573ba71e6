// More requests that are half sent than the server has connections: they hold up neither its state nor the requests of others.
import type { Socket } from 'node:net';
import { expect, it } from 'vitest';
import { chatBody, kVocabulary, openSocket, scriptedServer, send } from '../support/api_server.ts';
import { eventually } from '../support/eventually.ts';
import { oneHot } from '../support/scripted_session.ts';

const kChat = '/v1/chat/completions';
const kHead = `POST ${kChat} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`;
/** The server has 1,024 connections. */
const kClients = 1100;
/** For a state of a few bytes on a busy machine, and less than the ten seconds after which a half-sent head loses its connection. */
const kAtOnceMs = 9000;

/** The state of the server, as one of those who ask for it sees it: it has come, or it has not by then. */
const state = (server: Parameters<typeof send>[0]): Promise<unknown> =>
  Promise.race([
    send(server, '/health').then(
      ({ status }) => status,
      (error: unknown) => `no answer: ${error}`,
    ),
    new Promise((resolve) => setTimeout(resolve, kAtOnceMs, 'no answer in time').unref()),
  ]);

it.each([
  ['in their heads', kHead],
  ['in their bodies', `${kHead}Content-Length: 100\r\n\r\n{"model"`],
  ['before their first byte', ''],
])('requests that are half sent, %s, give way to others, the oldest first', async (_, text) => {
  let open = (): void => {};
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  const { server, sessions } = await scriptedServer(async () => {
    await gate;
    return oneHot(97, kVocabulary);
  });
  const sockets: Socket[] = [];
  try {
    // A request that has come in whole keeps its connection.
    const running = send(server, kChat, { body: chatBody({ max_tokens: 2 }) });
    await eventually(() => expect(sessions).toHaveLength(1));
    for (let i = 0; i < kClients; i++) {
      const socket = await openSocket(server);
      socket.on('error', () => {});
      if (text !== '') socket.write(text);
      sockets.push(socket);
    }
    expect(await state(server)).toBe(200);
    expect((await send(server, '/v1/models')).status).toBe(200);
    await eventually(() =>
      expect(sockets.filter(({ closed }) => closed).length).toBeGreaterThan(kClients - 1024),
    );
    expect(sockets.slice(0, 70).every(({ closed }) => closed)).toBe(true);
    expect(sockets.at(-1)?.closed).toBe(false);
    open();
    expect((await running).status).toBe(200);
  } finally {
    open();
    for (const socket of sockets) socket.destroy();
    await server.close();
  }
});
