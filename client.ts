#!/usr/bin/env -S npx ts-node
/**
 * An echo client (RFC 862): it connects to an echo server over TCP, sends a
 * message, reads until it has received as many bytes, and closes.
 *
 *     npx ts-node client.ts [host] [port] [message]
 *
 * When server.ts runs in another terminal, the client prints this:
 *
 *     Connected to server: localhost on port 54321
 *     Sending some data...
 *     Response from server: Hello World!
 *     Connection closed.
 *
 * Comments such as connect() name calls in Python's socket module. Left out on
 * purpose: more messages; retrying; a total time limit; bytes later than the echo.
 */
import { isIP, Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds without any progress after which the client gives up

/** Connects, sends the message and waits for its echo. Throws on any failure. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const connection = new Socket(); // socket()
  giveUpIfSilent(connection, `${host} port ${port}`); // settimeout()
  connection.connect({ host, port, family: 4 }); // connect(), AF_INET
  await new Promise((resolve, reject) => {
    connection.on('connect', resolve).on('error', reject);
  });
  if (connection.localPort === port && connection.localAddress === connection.remoteAddress)
    throw new EchoError(`nothing is listening on port ${port}: TCP connected the socket to itself`);
  console.log(`Connected to server: ${host} on port ${port}`);
  console.log('Sending some data...');
  connection.write(message); // sendall(), but without waiting: if both sides waited, neither would read
  let reply = Buffer.alloc(0);
  for await (const received of connection) { // recv()
    reply = Buffer.concat([reply, received]);
    if (reply.length >= message.length) break; // the echo is complete
  } // close(): when the loop ends, Node closes the connection
  console.log(`Response from server: ${visible(reply.toString())}`); // decode()
  console.log('Connection closed.');
  if (reply.length < message.length)
    throw new EchoError(`server closed after ${reply.length} of ${message.length} bytes`);
  if (!reply.equals(message)) throw new EchoError('the reply differs from the message');
}

/** settimeout(): gives up after TIMEOUT seconds without progress. (The lookup of the host has its own limit.) */
function giveUpIfSilent(connection: Socket, server: string): void {
  connection.on('connectionAttempt', () => connection.setTimeout(TIMEOUT * 1000));
  connection.on('timeout', () => {
    const { connecting, bytesRead } = connection;
    setImmediate(() => { // after Ctrl-Z and fg, a reply may be waiting: Node reads it first
      if (connection.connecting !== connecting || connection.bytesRead !== bytesRead) return;
      connection.destroy(new EchoError(`nothing arrived from ${server} for ${TIMEOUT} s`));
    });
  });
}

// So much for TCP. The rest is arguments, escaping and errors.
class EchoError extends Error {}
class UsageError extends Error {}
const USAGE = `Usage: npx ts-node client.ts [host] [port] [message]
  host     address or name (looked up as IPv4) of the server (default: ${HOST})
  port     1 to 65535 (default: ${PORT})
  message  any text, sent as UTF-8 (default: ${MESSAGE})`;

/** Parses the arguments, then talks. Throws a UsageError if one is wrong. */
async function main(args: string[]): Promise<void> {
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = args;
  if (host === '-h' || host === '--help') return console.log(USAGE);
  // The system would read 127.1 as 127.0.0.1, so a name must not end in a number, or have no letter.
  const isNumeric = /(^|\.)(\d+|0x[\da-f]+)$/i.test(host) || !/\p{L}/u.test(host);
  if (host.startsWith('-') || (isNumeric && !isIP(host)))
    throw new UsageError(`"${host}" is neither a host name nor an IP address`);
  if (!/^[1-9]\d{0,4}$/.test(port) || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port from 1 to 65535`);
  if (message === '') throw new UsageError('the message is empty: nothing would come back');
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  await talk(host, Number(port), Buffer.from(message));
}

/** Escapes control characters (ASCII's, DEL, C1's, text direction's) as \u{1b}, but not tab and newline. */
function visible(text: string): string {
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`);
}

/** Reports the error, then exits with status 2 if the usage was wrong, and else with 1. */
function fail(error: NodeJS.ErrnoException): void {
  let report = `client.ts: ${visible(error.message).replaceAll('\n', '\\n')}\n`;
  if (error instanceof UsageError) report += `${USAGE}\n`;
  else if (!(error instanceof EchoError || error.syscall)) report = `${error.stack}\n`; // so it's a bug
  process.stdout.write('', () => { // wait for earlier output, which exit() would discard
    process.stderr.write(report, () => process.exit(error instanceof UsageError ? 2 : 1));
  });
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') console.error(`client.ts: ${error.message}`); // EPIPE: its reader has gone
  process.exit(1);
});
main(process.argv.slice(2)).catch(fail);
