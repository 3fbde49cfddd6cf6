// Sends the lines of standard input to a stream, and ends with 0 once the relay has said that all are safe.
//   node send.js HOST PORT STREAM

const net = require('node:net');
const readline = require('node:readline');

const [host, port, stream] = process.argv.slice(2);
const relay = net.connect({ host, port: Number(port) });
process.exitCode = 1; // until the relay has answered
relay.on('error', (error) => console.error(error.message));
readline.createInterface({ input: relay }).on('line', (answer) => {
  if (answer === '!synced 1') process.exitCode = 0;
  else console.error(answer);
  relay.end();
});

async function send() {
  for await (const payload of readline.createInterface({ input: process.stdin })) {
    // `write` says no once enough is on its way: then wait until it has gone out.
    if (!relay.write(`${stream} ${payload}\n`)) await new Promise((done) => relay.once('drain', done));
  }
  relay.write('!sync 1\n');
}
send();
